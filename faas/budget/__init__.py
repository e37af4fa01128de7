"""What things cost and who may spend it: policy that decides and does nothing else."""
