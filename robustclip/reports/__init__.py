"""What a probe leaves behind: the report, its witnesses, and how both are shown, exported and replayed."""
