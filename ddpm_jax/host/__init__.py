"""What a machine, its disks and its processes ask for; nothing of diffusion."""
