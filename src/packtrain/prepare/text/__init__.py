"""What happens to the text of one document: cleaning and filters."""
