"""`rism refine`: instructions rewritten by the vision-language model of a checkpoint."""
