"""The avatar studio: random identities, and their pictures under any face parameters."""
