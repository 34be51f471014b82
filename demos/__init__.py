"""The Gradio app, scripts, and the small trained pipelines with how they were trained."""
