"""What a `client_app` does with one message: build, fit or evaluate, answer; here or in processes."""
