"""Weight edits between layers and models: each one call, in place, everything checked before anything is written."""
