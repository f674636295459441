"""The verbs: one file each with its schema, pure-torch reference, fake and public functions."""
