"""The Textual dashboard: draws snapshots, computes nothing."""
