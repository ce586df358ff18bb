"""Networks of the method. Every module works on float32 and supplies its own view for export."""
