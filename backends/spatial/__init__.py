"""backends/spatial"""
