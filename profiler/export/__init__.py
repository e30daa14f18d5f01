"""Tables for other programs: CSV files, and the data dictionary that describes them."""
