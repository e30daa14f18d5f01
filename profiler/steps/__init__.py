"""How long steps take, and what each of them holds."""
