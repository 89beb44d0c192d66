"""transformers and PEFT: LoRA adapters and the new head travel, the pretrained base stays at home."""

import lightning.pytorch as L
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from ecosystem._harness import CPU, Site, check, quiet
from lightning_fl_ext import WeightExchange, client_app


class Tuned(L.LightningModule):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)  # stands for pretrained weights
            base = BertForSequenceClassification(config)
        self.net = get_peft_model(
            base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
        )

    def training_step(self, batch, _):
        return self.net(**batch).loss

    def validation_step(self, batch, _):
        self.log("val_loss", self.net(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), 1e-2)


def texts(size):
    tokens, labels = torch.randint(50, (size, 12)), torch.randint(2, (size,))
    rows = [
        {"input_ids": tokens[i], "attention_mask": torch.ones(12).long(), "labels": labels[i]}
        for i in range(size)
    ]
    return DataLoader(rows, batch_size=5, shuffle=True)


def data(context):
    site = context.node_config["partition-id"]
    return Site(texts((23, 16, 11)[site]), texts(4 + site))


if __name__ == "__main__":
    quiet()
    exchange = WeightExchange(include=("*lora_*", "*modules_to_save*"))
    client = client_app(Tuned, data, CPU, exchange=exchange)
    outcome = 'with `exchange=WeightExchange(include=("*lora_*", "*modules_to_save*"))`'
    options = {"evaluated": (4, 5, 6), "exchange": exchange, "outcome": outcome}
    check("transformers", "BertForSequenceClassification", Tuned, client, (23, 16, 11), **options)
