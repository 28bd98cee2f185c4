"""`tributary up`: starts the programs of a run, keeps them running, shows how it goes, and leaves nothing behind."""
