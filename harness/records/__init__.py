"""Everything that a run leaves behind: records, distilled sets, files, and sets that others publish."""
