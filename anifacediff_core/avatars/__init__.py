"""The avatar studio: random identities, and pictures of them under any face parameters with exact ground truth."""
