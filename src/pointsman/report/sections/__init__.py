"""What the pages of all jobs say alike: head, claims, cost, provenance, answers, terms."""
