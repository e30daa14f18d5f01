"""Many ranks: each rank's analysis by itself, merged in any order, and what only all of them together can tell."""
