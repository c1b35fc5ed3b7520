"""What every job shares: its folder, its bench, its results, its shape."""
