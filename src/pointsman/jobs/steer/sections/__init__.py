"""The sections of the page of a steering run, or of the evaluation of a steering."""
