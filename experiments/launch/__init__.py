"""Write jobs for SLURM, Kubernetes and Cloud TPU: python -m experiments.launch."""
