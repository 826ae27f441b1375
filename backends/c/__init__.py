"""backends/c"""
