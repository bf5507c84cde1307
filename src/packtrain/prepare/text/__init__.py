"""What happens to the text of one document: cleaning, filters, and what makes two texts equal."""
