"""Weight stores: where publications lie, and how they are written and fetched."""
