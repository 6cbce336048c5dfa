"""Scripts for machines that are not everyone's."""
