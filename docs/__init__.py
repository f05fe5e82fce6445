"""The documentation: pages in Markdown, and what makes more of the source (`docs.generate`)."""
