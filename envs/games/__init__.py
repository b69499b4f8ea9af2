"""Games: rules (`game`), the table where players meet (`match`), and the games themselves, a module each."""
