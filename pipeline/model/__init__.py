"""Models: loading and saving, blocks, surgery, loss and costs."""
