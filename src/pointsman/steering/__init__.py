"""What is deployed: a steering of the routers, its model card, and folding it into a checkpoint."""
