"""Copies among all documents: equal ones by sorting hashes on disk, near ones by MinHash."""
