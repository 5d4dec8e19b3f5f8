"""The ROS package `perception`: node, log player, launch file."""

from glob import glob

from setuptools import setup

# Not `perception`: that is the library, and a module of that name here would hide it.
setup(
    name="perception-ros",
    version="0.1.0",
    packages=["perception_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/perception"]),
        ("share/perception", ["package.xml", "README.md"]),
        ("share/perception/launch", glob("launch/*.launch.py")),
        ("share/perception/config", glob("config/*")),
        ("share/perception/rviz", glob("rviz/*.rviz")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="bev-perception maintainers",
    maintainer_email="maintainers@bev-perception.invalid",
    description="Camera + LiDAR bird's-eye-view perception: 3D boxes and map masks.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "bev_node = perception_ros.node:main",
            "log_player = perception_ros.log_player:main",
            "result_printer = perception_ros.result_printer:main",
        ]
    },
)
