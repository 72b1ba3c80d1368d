"""Labels handed to annotation tools and taken back corrected.

The forms are those of CVAT (Segmentation mask 1.1), Label Studio (brush labels) and COCO.
`datumaro` and Label Studio's SDK read and write them too, and were tried: both install
``opencv-python-headless`` over the ``opencv-python`` that this project runs with (the same files
from two packages), and bring pandas, lxml and more. What is needed of them is a text file with
colours, and run lengths; so COCO's masks are `pycocotools`', which brings nothing, and the rest is
ours, tested against files that datumaro and the SDK wrote.
"""
