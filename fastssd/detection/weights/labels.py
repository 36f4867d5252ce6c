"""The class names of published detectors, in the order of their columns."""

COCO_91 = tuple(
    """
person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,N/A,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,N/A,backpack,umbrella,N/A,N/A,handbag,tie,suitcase,
frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,N/A,
wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,
potted plant,bed,N/A,dining table,N/A,N/A,toilet,N/A,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,
sink,refrigerator,N/A,book,clock,vase,scissors,teddy bear,hair drier,toothbrush
""".replace("\n", "").split(",")
)
"""The 90 category ids of COCO, from 1; with the background these are the 91 columns of torchvision's detectors. Ids
that COCO does not use are called N/A."""

COCO_80 = tuple(name for name in COCO_91 if name != "N/A")
"""The 80 categories of COCO without gaps, by ascending id: the columns of lufficc/SSD."""

VOC_20 = tuple(
    """
aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,sheep,sofa,
train,tvmonitor
""".replace("\n", "").split(",")
)
"""The classes of Pascal VOC, in the usual alphabetical order."""
