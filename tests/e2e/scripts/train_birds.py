"""A working Trainer script of somebody's: `train_birds.py DATA MODEL`. Its last three lines are new."""

import sys

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

folder, model_name = sys.argv[1:3]
names = {0: "a", 1: "b"}
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=2, id2label=names)
files = {"train": f"{folder}/train.jsonl", "test": f"{folder}/test.jsonl"}
birds = load_dataset("json", data_files=files, cache_dir=f"{folder}/cache")
numbers = {name: number for number, name in names.items()}
birds = birds.map(
    lambda row: {**tokenizer(row["text"], truncation=True), "labels": numbers[row["label"]]},
    remove_columns=["text", "label"],
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(output_dir=f"{folder}/out", per_device_train_batch_size=32, report_to="none", use_cpu=True),
    train_dataset=birds["train"],
    eval_dataset=birds["test"],
    data_collator=DataCollatorWithPadding(tokenizer),
    processing_class=tokenizer,
)

import fedpeft  # noqa: E402

device = fedpeft.attach(trainer, home=sys.argv[3])
device.run()
