"""tcc, the tensor cascade compiler."""
