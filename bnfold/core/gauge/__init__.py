"""The gauge algebra: rules, scale, shift, solve. numpy only."""
