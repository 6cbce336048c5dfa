"""Everything that is shown to people and written for machines: the only place that formats."""
