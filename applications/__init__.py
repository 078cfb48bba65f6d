"""What a trained model is used for: pictures, shapes, videos, preprocessing of photographs."""
