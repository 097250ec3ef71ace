"""From one machine to many: launcher configurations, the Slurm script, the demo driver. Imports no other package."""
