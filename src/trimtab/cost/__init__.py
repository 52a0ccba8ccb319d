"""What a job costs: memory, time and money, by arithmetic alone."""
