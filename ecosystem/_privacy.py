"""DP-SGD by opacus as a part of a LightningModule, for federated fits. It needs opacus alone: copy it."""

import secrets

import torch
from opacus import PrivacyEngine
from opacus.data_loader import DPDataLoader


def generator(secret):
    seed = secrets.randbits(63) if secret else int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(seed)


def private_loader(loader, secret=True):
    """Draw each example by chance, as the accountant assumes: a batch then has any size, also none."""
    return DPDataLoader.from_data_loader(loader, generator=generator(secret))


class Privacy(torch.nn.Module):
    """Trains the LightningModule that holds it by DP-SGD, and accounts for all rounds.

    Its accountant is an entry of the state dict that does not travel, so that `client_app` keeps it on
    the client from round to round. Noise and batches come from the machine's entropy.

    Args:
        noise_multiplier: Noise on the sum of a batch's gradients, in units of `max_grad_norm`.
        max_grad_norm: What the gradient of each example is clipped to.
        delta: For which the privacy spent is told.
        secret: False has noise and batches follow from the run's seed. Whoever knows that, the server
            among them, can take the noise away again: for tests.
    """

    def __init__(self, noise_multiplier, max_grad_norm, delta, secret=True):
        super().__init__()
        self.settings = {"noise_multiplier": noise_multiplier, "max_grad_norm": max_grad_norm}
        self.delta, self.secret = delta, secret
        self.engine = PrivacyEngine(accountant="rdp")

    def get_extra_state(self):
        return self.engine.accountant.state_dict()

    def set_extra_state(self, state):
        self.engine.accountant.load_state_dict(state)

    def optimizer(self, module, optimizer):
        """Have an optimizer clip, add noise, and tell the accountant of each step."""
        module.trainer.fit_loop.setup_data()
        loader = module.trainer.train_dataloader
        if not isinstance(loader, DPDataLoader):
            raise TypeError(f"train on a `private_loader`. Got a {type(loader).__name__}.")
        _, private, _ = self.engine.make_private(
            module=module,
            optimizer=optimizer,
            data_loader=loader,
            wrap_model=False,
            noise_generator=generator(self.secret),
            **self.settings,
        )
        return private

    def epsilon(self):
        """Tell the privacy spent by all rounds in which the client took part."""
        return self.engine.get_epsilon(self.delta)
