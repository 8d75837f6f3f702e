"""Operations: each file holds the public function, its plain-PyTorch reference and its torch.library registration."""
