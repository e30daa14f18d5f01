"""From a kernel's name to its kind and operator: `classifier` asks the rules of users, then the others."""
