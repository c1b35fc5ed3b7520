"""What is said of results: pages as HTML and tables in the terminal, made of blocks. Jobs make the blocks."""
