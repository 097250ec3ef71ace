"""From one machine to many: launcher configurations, scripts for clusters, what stands before a launcher, the demo.

Imports no other package.
"""
