"""`python -m patchnets.predict`: the classes of images in files, on the terminal or in a table."""
