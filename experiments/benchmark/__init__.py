"""patchnets beside what one would use in its place, on the same work, in turns, in one run: see __main__.py."""
