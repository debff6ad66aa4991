"""What is seen of the service: compared, kept, judged. Pure; what looks at the machine is `serving.monitor`."""
