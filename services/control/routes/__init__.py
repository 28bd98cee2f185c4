"""The rooms of the API, one router each."""
