"""The sections of an audit's page, one a file: from typed results to blocks."""
