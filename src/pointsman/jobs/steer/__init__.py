"""The job `steer`."""
