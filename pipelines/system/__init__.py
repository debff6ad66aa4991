"""What every package needs of the machine: whole files, digests, processes, secrets, facts."""
